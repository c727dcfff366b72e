"""How fast this project is, against the textbook's own code: `make bench`.

    python -m benchmarks [--quick] [SECTION …]

Every measurement runs in a process of its own, the textbook's in the
environment of `make oracle`, and the two sides take turns, so that a noisy
machine disturbs both alike. Quoted are ratios of neighbours.

* `workload`: the chapter's sizes, batches, and the arithmetic of a step;
* `textbook`: d2l 1.0.3 with the chapter's cells; `frameworks`: the lines of
  the cells that depend on the framework;
* `measure`: what can be measured, the same function for either side;
  `profiling`: where a step's time goes;
* `compare`: processes, turns and ratios; `sections`: what is compared;
* `targets`: what is to be reached; `report`, `pictures`: from results.json
  to results.md;
* `gpu`: the comparison on a CUDA card, `make bench-gpu`.
"""
