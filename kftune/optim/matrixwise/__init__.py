"""What Shampoo and SOAP share: statistics of a matrix's own gradient, and their roots and eigenbases."""
