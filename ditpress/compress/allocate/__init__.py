"""Which layer gets which format: errors measured one by one, a knapsack over them, the result re-measured."""
