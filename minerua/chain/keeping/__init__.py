"""What is kept between runs: results by their content, and models within a bound of bytes."""
