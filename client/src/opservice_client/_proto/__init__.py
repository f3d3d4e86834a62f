"""Generated from proto/ by scripts/gen_protos.sh; never edited."""
