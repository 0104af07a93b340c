"""What a model will take on a machine, before it is trained or exported: counted and measured on skeletons of its graphs."""
