"""tqdm's progress bar, as the environment shows it best, and without a complaint where that is as text.

Where a notebook has no ipywidgets `tqdm.auto` takes the bar of plain text, which works, and warns; that
warning would be the first thing a notebook shows.
"""

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as tqdm
