"""The adapter on the Hugging Face Hub: its place is made before the run, so that what is wrong there is said first."""

from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.io.names import brief


def make_place(name: str) -> None:
    """Make the repository ``OWNER/NAME``, or find it.

    Raises:
        BoneError: the Hub is out of reach, or does not let this user do it.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, exist_ok=True)
    except Exception as error:  # names, rights, tokens and networks fail in their own ways
        raise BoneError(
            f"The Hub cannot take {name} ({brief(error).rstrip(' .')}): log in by `hf auth login`, or leave out "
            "push_to_hub and push the adapter later."
        ) from error


def push(folder: Path, name: str) -> str:
    """Upload an adapter. Returns its address.

    Raises:
        BoneError: it could not be; the folder is as it was.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().upload_folder(folder_path=folder, repo_id=name, commit_message="Adapter by bone-peft")
    except Exception as error:  # as above
        raise BoneError(
            f"{folder} is whole, but it could not be pushed ({brief(error).rstrip(' .')}): hf upload {name} {folder}"
        ) from error
    return f"https://huggingface.co/{name}"
