"""What encoders need of W_enc alone: made once per version of it, and looked after on the device."""
