"""What models cost, counted from their architectures, and how they are made to cost the same."""
