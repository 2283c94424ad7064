"""The demonstration market: real list prices, and the actors that trade on them."""
