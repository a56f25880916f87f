"""Two threads at most: more than the machine has would spin against each other."""

import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
