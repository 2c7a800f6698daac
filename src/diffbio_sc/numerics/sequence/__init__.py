"""What sequences hold: k-mers and motifs."""
