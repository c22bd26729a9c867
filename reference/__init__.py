"""The functions of `sparseggm` on dense matrices, written from the definitions: the oracle of its tests.

`reference.linalg`, `reference.topology` and `reference.gaussian` carry the names of their counterparts;
`reference.inference` has conditioning, marginals and maximum likelihood. They are written to be checked by eye: loops
over columns, O(n³) or worse, no tricks. Every function keeps the dtype of its arguments, so that tests can ask for
`numpy.longdouble`. Imports NumPy only, and never `sparseggm`.
"""
