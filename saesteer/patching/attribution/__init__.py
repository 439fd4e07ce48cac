"""Attribution patching, integrated gradients, and their agreement with patching itself."""
