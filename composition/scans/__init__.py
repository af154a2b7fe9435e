"""This package reads and writes scans and masks, says what their values mean, and holds the errors for what fails
there. It is the lowest layer of `composition`: it knows files and arrays, and no network."""
