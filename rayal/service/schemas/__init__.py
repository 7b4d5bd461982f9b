"""Bodies and answers of the API as models, one module for each kind of thing."""
