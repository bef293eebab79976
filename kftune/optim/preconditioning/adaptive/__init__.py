"""What K-FAC adapts while it trains: λ, γ and the length of its updates (Martens, Grosse 2015, sections 6.4 to 7)."""
