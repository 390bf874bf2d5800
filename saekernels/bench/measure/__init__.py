"""What measuring takes: shapes, clocks, memory, ceilings, contenders, and which peers are here."""
