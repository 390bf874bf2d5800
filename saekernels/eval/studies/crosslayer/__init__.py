"""What a model does when several layers are replaced together, by a dictionary that spans them."""
