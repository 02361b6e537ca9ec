/// @file error.hpp
/// What the core throws. Nothing else leaves it, except std::bad_alloc, std::system_error where a file cannot be written, and
/// what a caller's own function throws.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace minerua {

/// An argument that the operation cannot take: wrong sizes, null pointers, values that are not finite.
class InvalidArgument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace minerua

/// Throws InvalidArgument unless the condition holds; the message is a stream expression, built only on failure:
/// `MINERUA_EXPECTS(rows > 0, "svd_mutation: rows is " << rows)`.
#define MINERUA_EXPECTS(condition, message)              \
  do {                                                   \
    if (!(condition)) {                                  \
      std::ostringstream minerua_text;                   \
      minerua_text << message;                           \
      throw ::minerua::InvalidArgument(minerua_text.str()); \
    }                                                    \
  } while (false)
