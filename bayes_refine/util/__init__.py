"""What every folder needs: folders of results, arrays on disk, kept programs, progress, errors."""
