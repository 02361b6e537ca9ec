"""Sources of rows: files, folders, arrays and datasets that are looked through once and read in any order."""
