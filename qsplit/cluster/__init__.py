"""Work of the store on many machines, by Ray."""
