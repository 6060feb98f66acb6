"""The URL of a storage with a password, which no message and no list of processes may show."""

URL = "postgresql://u:s3cret@127.0.0.1:1/db?connect_timeout=5&application_name=a%2Cb"
