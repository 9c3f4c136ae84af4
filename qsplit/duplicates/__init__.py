"""Groups of equal and similar images, which file of each is kept, and a trash that gives back what it took."""
