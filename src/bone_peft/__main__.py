"""``python -m bone_peft`` is the command ``bone``, in a form that ``accelerate launch -m bone_peft`` can start."""

from bone_peft.cli.main import main

if __name__ == "__main__":
    main()
