"""What every room speaks: errors, files, the class list, cases, grids, volumes, pictures, checks."""
