"""`saekernels eval --clt`, `--crosscoder` and `--transcoders`: what replacing several layers together costs."""
