"""From pixels to frozen statistics: shoeboxes, templates, weights, background, detector noise."""
