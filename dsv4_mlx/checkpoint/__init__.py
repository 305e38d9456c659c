"""An official checkpoint as it lies on disk: headers, index, tensors. Nothing is believed unchecked."""
