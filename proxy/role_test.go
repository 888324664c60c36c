package proxy_test

func playRole(role string) int { return 2 }
