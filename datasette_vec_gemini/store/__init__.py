"""All SQL over an index. Nothing above this package writes SQL, nothing in it loads a model."""
