"""What makes rows and captures that tables and figures need."""
