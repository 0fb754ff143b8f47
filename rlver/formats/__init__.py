"""Files of other formats in and out: profiles and transcripts as github Tencent/digitalhuman (SAGE) publishes them."""
