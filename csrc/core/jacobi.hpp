/// @file jacobi.hpp
/// The formulas of the parallel cyclic Jacobi iteration, shared by the CUDA kernel and the C++ tests.
#pragma once

#include "core/dtype.hpp"

namespace minerua {

/// The two indices of pair `pair` in round `round` of a round-robin tournament of `players` (even): in players - 1 rounds
/// of players / 2 disjoint pairs everybody meets everybody once. Source: the circle method; Brent and Luk (1985).
struct Pair {
  int low;
  int high;
};

MINERUA_HOST_DEVICE static inline Pair pair_of(int pair, int round, int players) {
  const int circle = players - 1;  // player `circle` stays, the others walk round
  const int a = pair == 0 ? circle : (round + pair) % circle;
  const int b = (round + circle - pair) % circle;
  return a < b ? Pair{a, b} : Pair{b, a};
}

/// The rotation (c, s) that makes entry (p, q) of a symmetric matrix zero: with J = [[c, s], [-s, c]], Jᵀ A J is diagonal.
struct Rotation {
  double cosine;
  double sine;
};

/// Source: Golub and Van Loan, Matrix Computations, section 8.5.2. `threshold` >= 0: smaller entries are left as they are.
MINERUA_HOST_DEVICE static inline Rotation rotation_for(double app, double apq, double aqq, double threshold) {
  const double size = apq < 0.0 ? -apq : apq;
  if (!(size > threshold)) return {1.0, 0.0};
  const double tau = (aqq - app) / (2.0 * apq);
  const double reach = tau < 0.0 ? -tau : tau;
  const double t = (tau < 0.0 ? -1.0 : 1.0) / (reach + __builtin_sqrt(1.0 + reach * reach));
  const double c = 1.0 / __builtin_sqrt(1.0 + t * t);
  return {c, t * c};
}

/// Entries below this share of the Frobenius norm count as zero: a few roundings of the largest entry.
constexpr double jacobi_tolerance = 4.0 * 2.220446049250313e-16;

/// Sweeps after which a matrix counts as not converged; 128 × 128 needs about 9.
constexpr int jacobi_max_sweeps = 40;

}  // namespace minerua
