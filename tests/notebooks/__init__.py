"""Notebooks as people use them: real kernels, nbconvert and JupyterLab."""
