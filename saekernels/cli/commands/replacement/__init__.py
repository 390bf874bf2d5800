"""`saekernels eval --clt` and `--transcoders`: what replacing several layers together costs."""
