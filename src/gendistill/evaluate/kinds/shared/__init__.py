"""What several task kinds, or a kind and other rooms, have in common."""
