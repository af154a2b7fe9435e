"""Training-free tumour composition: placement, prompts, inversion and Eq. 7-9 of the paper, on real scans."""
