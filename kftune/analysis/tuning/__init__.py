"""How the tuning went: best configurations, edges of the search box, importance, what more trials or time bring."""
