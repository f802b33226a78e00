"""What the experts of a model take, as a page (HTML) or as one picture (PNG)."""
