/// @file loops.hpp
/// The hot loops, compiled once per instruction set (baseline.cpp, avx2.cpp, avx512.cpp) and chosen at run time.
///
/// All sets give the same bits: multiplications and additions are never contracted, and every sum has one written order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"

namespace minerua::isa {

/// What children are made of: child p is base + Σ_k coefficients[p * terms_count + k] · terms[k * stride + i], summed in the
/// order of k; without a base (null) the sum starts with the first product. `stride` is a multiple of 16, and rows and base
/// may be read up to the next multiple of 16.
struct Sums {
  const float* base;
  const float* terms;
  std::size_t stride;
  std::size_t terms_count;
  const float* coefficients;
  std::size_t children;
  std::size_t count;
};

/// What `combine_stored` sums: the base, or null, and sources of one element type, each from the first element of a tile on.
struct StoredSums {
  const void* base;
  const void* const* sources;
  std::size_t count_of_sources;
  const float* coefficients;
  std::size_t count;
};

/// Terms that loops make where they need them: stored less base, both of one element type; base may be null.
struct Terms {
  const void* stored;
  const void* base;
  std::size_t count;
};

/// How many keys were above a range, and how many within it.
struct KeyCounts {
  std::size_t above, inside;
};

/// Which random words: those of one model and tensor under a seed.
struct RandomStream {
  std::uint64_t seed;
  std::uint32_t model, tensor;
};

/// The largest of a tile: those with a key above `key`, and below index `cut` also those with this very key. Key -1
/// takes all, key 2^31 - 1 with cut 0 takes none.
struct KeyLimit {
  std::int32_t key, cut;
};

/// Where the probability of keeping an element comes from.
enum class RandomKind { none, even, ranked, drawn };

/// What decides which elements of a tile are kept: those among `top`, not among `but`, and drawn.
struct MaskedTile {
  bool has_limits;
  KeyLimit top, but;
  RandomKind kind;
  /// Words of all elements, for both kinds; the limit that they must be below, for `even`.
  const std::uint32_t* words;
  std::uint32_t limit;
  /// One per element, for `ranked`.
  const float* probabilities;
  /// What was drawn before, for `drawn`: bit (first_bit + i) % 64 of number (first_bit + i) / 64 is that of element i.
  const std::uint64_t* bits;
  std::size_t first_bit;
  /// Divide what is kept by its probability: `probability`, or, for `ranked`, its own.
  bool inverse;
  float probability;
};

/// How kept parts become a sum, as `merge_masked` in core/masked.hpp defines it; votes and shares may be null.
struct MergeRule {
  const float *factors, *votes, *shares;
  float scale;
  std::size_t count_of_terms;
};

/// What `write_masked` sums: kept parts, the others zero.
struct MaskedSums {
  const float* base;
  const float* terms;
  std::size_t stride;
  MergeRule rule;
  std::size_t count;
};

/// What `write_kept` sums: of at most `most_kept` sources, stored beside their base (or null) in one element type, the terms
/// with keys above `keys`, or, without keys, those whose bit is set (see `MaskedTile::bits`).
struct KeptSums {
  const void* base;
  const void* const* sources;
  const std::int32_t* keys;
  const std::uint64_t* const* bits;
  std::size_t first_bit;
  MergeRule rule;
  std::size_t count;
};

inline constexpr std::size_t most_kept = 8;

/// Σ |terms|, and of those whose bit is set.
struct MagnitudeSums {
  double all, kept;
};

/// C (rows × columns) = A B with A given by two strides: A(i, k) = a[i * a_row + k * a_depth], B(k, j) = b[k * b_depth + j],
/// C(i, j) = c[i * c_row + j]. Sums run in the order of k. `rows` is a multiple of 8, `columns` of a cache line. Where C is
/// known to be symmetric, its lower part is computed and mirrored; then `rows` are at most `columns`, which are padding.
template <class Real>
struct MatrixProduct {
  const Real* a;
  std::size_t a_row, a_depth;
  const Real* b;
  std::size_t b_depth;
  Real* c;
  std::size_t c_row, rows, columns, depth;
  bool is_symmetric;
};

inline constexpr std::size_t eigen_scratch_rows = 14;

/// What an SVD mutation is made of, in one precision.
template <class Real>
struct SpectralLoops {
  void (*multiply)(const MatrixProduct<Real>& given);

  /// Eigen-decomposition of the symmetric matrix `a` (size × size, rows `stride` apart, destroyed): eigenvalues[k], unsorted,
  /// with eigenvector k in row k of `vectors` (same stride). The largest entry should not be far from 1. `scratch` holds
  /// eigen_scratch_rows * stride numbers; `stride` is a multiple of a cache line with stride >= size, and columns from `size` on must be zero
  /// in `a`; they are zero in `vectors` afterwards. Returns false if an eigenvalue needed more than 60 QL sweeps.
  bool (*eigen)(Real* a, std::size_t size, std::size_t stride, Real* eigenvalues, Real* vectors, Real* scratch);
};

/// Loops of one instruction set. All pointers are borrowed; nothing here allocates, throws or keeps state.
struct Loops {
  /// What `diagnose` shows: "baseline", "avx2" or "avx512".
  const char* name;

  /// terms[i] = float(source[i]) - base[i], or float(source[i]) without a base (null); indexed by DType. `terms` is filled
  /// with zeros up to the next multiple of 16. `source` may be `terms`.
  void (*read_terms[dtype_count])(const void* source, const float* base, float* terms, std::size_t count);

  /// The same, and returns how many of the source's numbers are not finite.
  std::size_t (*read_terms_counted[dtype_count])(const void* source, const float* base, float* terms, std::size_t count);

  /// values[i] = float(source[i]): `count` floats and no more.
  void (*read_values[dtype_count])(const void* source, float* values, std::size_t count);

  /// What `write_children` writes for one child, in one go, where all is stored in one type; indexed by DType. Returns false
  /// where a number read or written may not be finite: then somebody has to count.
  bool (*combine_stored[dtype_count])(const StoredSums& given, void* out);

  /// How many of `count` stored numbers are not finite; indexed by DType.
  std::size_t (*count_not_finite[dtype_count])(const void* values, std::size_t count);

  /// values[i] += left[r] * right[r * stride + i], one r after another.
  void (*add_products)(float* values, const float* left, std::size_t rank, const float* right, std::size_t stride,
                       std::size_t count);

  /// sums[k * terms_count + l] += Σ_i terms[k * stride + i] · terms[l * stride + i] for k <= l, in double precision. Terms
  /// are zero up to the next multiple of 16.
  void (*add_inner_products)(const float* terms, std::size_t stride, std::size_t terms_count, std::size_t count,
                             double* sums);

  /// The same for two or three sources less their base, stored in one type; indexed by DType.
  void (*add_stored_products[dtype_count])(const StoredSums& given, double* sums);

  /// Copies like memcpy, without filling the caches where the machine can. Needs a fence before another thread looks.
  void (*copy_past_caches)(void* to, const void* from, std::size_t bytes);

  /// Sums every child and rounds it once to nearest even, child p to `out` + p * out_stride elements; indexed by DType.
  /// Writes `count` elements per child and no more.
  void (*write_children[dtype_count])(const Sums& given, void* out, std::size_t out_stride);

  /// Counts the keys (31 bits of a magnitude) above `high`, and stores those in [low, high], in order, in `inside`, which
  /// has room for all and 16 more; indexed by DType.
  KeyCounts (*sort_out_keys[dtype_count])(const Terms& terms, std::int32_t low, std::int32_t high, std::uint32_t* inside);

  /// How many keys are exactly this one; indexed by DType.
  std::size_t (*count_equal_keys[dtype_count])(const Terms& terms, std::int32_t key);

  /// Random words of the elements of blocks of 64: element 64 b + 16 w + i takes word w of the counter 16 b + i.
  void (*random_words)(const RandomStream& stream, std::uint64_t first_block, std::size_t blocks, std::uint32_t* words);

  /// Which random words of these blocks are below the limit: one number per block, bit i for its element i.
  void (*draw_bits)(const RandomStream& stream, std::uint64_t first_block, std::size_t blocks, std::uint32_t limit,
                    std::uint64_t* bits);

  /// Makes zero of what is not kept. Works on whole groups of 16: inputs must be readable and terms writable up to there.
  void (*mask_terms)(const MaskedTile& given, float* terms, std::size_t count);

  /// Sums in double precision, of all terms and, with bits (not null), of those whose bit is set; indexed by DType.
  MagnitudeSums (*sum_magnitudes[dtype_count])(const Terms& terms, const std::uint64_t* bits, std::size_t first_bit);

  /// base + scale · Σ_k factors[k] · terms[k] ÷ divisor, as `merge_masked` in core/masked.hpp defines it, rounded once.
  /// Works on whole groups of 16 and writes `count` elements; indexed by DType.
  void (*write_masked[dtype_count])(const MaskedSums& given, void* out);

  /// The same in one go, where all is stored in one type; indexed by DType. Returns false where a number read or written may
  /// not be finite: then somebody has to count.
  bool (*write_kept[dtype_count])(const KeptSums& given, void* out);

  SpectralLoops<float> in_single;
  SpectralLoops<double> in_double;
};

extern const Loops baseline;
#if defined(MINERUA_X86)
extern const Loops avx2;
extern const Loops avx512;
#endif

/// The widest loops that this machine runs; MINERUA_ISA=baseline|avx2|avx512 in the environment of the first call narrows
/// the choice, for tests. Thread-safe.
/// @throws InvalidArgument if MINERUA_ISA names an unknown or unsupported set.
const Loops& loops();

}  // namespace minerua::isa
