from opservice.cli import main

main()
