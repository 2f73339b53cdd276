"""What measures: the sweep over input view counts, its methods, its rows. Imports the library, never the other way round."""
