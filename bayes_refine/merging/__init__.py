"""From integrated intensities to true ones: scales, latent intensities, averages, Friedel mates."""
