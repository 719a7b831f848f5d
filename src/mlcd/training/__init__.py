"""What every stage that trains a network shares: ZeRO, data order, rates, metrics."""
