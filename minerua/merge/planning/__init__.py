"""Planning: from a recipe and the models' headers to one job per tensor of the merged model."""
