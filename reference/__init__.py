"""The functions of `sparseggm` on dense matrices, written from the definitions: the oracle of its tests.

`reference.linalg`, `reference.topology`, `reference.gaussian`, `reference.geometry`, `reference.fields` and
`reference.levels` carry the names of their counterparts; `reference.inference` has conditioning, marginals and maximum
likelihood. They are written to be checked by eye: loops over columns, O(n³) or worse, no tricks. Functions keep the
dtype of their arguments, so that tests can ask for `numpy.longdouble`, unless they say otherwise. They import NumPy,
and SciPy for the normal distribution, and never `sparseggm`.
"""
