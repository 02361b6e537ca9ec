"""Tokenizers: which token has which row, the merged tokenizer's files, and rows that are made anew."""
