"""What the vendor's tools refuse; they know nothing of an appliance, nor of its errors."""


class VendorError(Exception):
    """It was not done, and what is published stays as it was; the text says what to do."""
