"""What several tests share: trainers, servers, workers, tokenizers."""
