"""What a run shows to Prometheus, and what is made of it: gauges, boards for Grafana, alerts, both served here."""
