"""Maps of sparse codes: decoding and its gradients."""
