"""What several tests share: virtual time, fakes of the ports."""
