"""From integrated J to true intensities: scales, latent intensities, averages, Friedel mates."""
